"""What to try next: ask and tell over knobs, what is believed before anything is tried, and what former runs teach."""

from adamtune.search.looking import storage_to_look_at as storage_to_look_at
from adamtune.search.studies import Asked as Asked
from adamtune.search.studies import KnobStudy as KnobStudy
from adamtune.search.studies import RungPruner as RungPruner
from adamtune.search.studies import close_storage as close_storage
from adamtune.search.studies import open_storage as open_storage
from adamtune.search.studies import refuse_known_run as refuse_known_run
from adamtune.search.studies import sqlite_url as sqlite_url
from adamtune.search.studies import storage_faults_told as storage_faults_told
from adamtune.search.studies import whole_url as whole_url
