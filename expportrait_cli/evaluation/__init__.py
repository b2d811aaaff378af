"""How close a film is to what it should show, and to what drove it."""

from .columns import COLUMNS as COLUMNS
from .columns import Column as Column
from .report import report_page as report_page
from .scores import Scores as Scores
from .scores import table as table
from .stage import evaluate as evaluate
