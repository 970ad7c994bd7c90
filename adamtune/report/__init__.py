"""What people look at: the terminal and report.html. Reads results; never trains and never imports a task."""
