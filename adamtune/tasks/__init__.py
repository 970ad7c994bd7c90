"""Example tasks on real data, one file each. Their data come with an installed package; nothing is downloaded."""
