"""What is installed here, and whether a task can be tuned: one line a question, each with what to do about it."""

from adamtune.doctor.environment import check_environment as check_environment
from adamtune.doctor.lines import Line as Line
from adamtune.doctor.lines import Status as Status
from adamtune.doctor.task_checks import check_task as check_task
