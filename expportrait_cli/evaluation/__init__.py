"""Metrics of one film against its target (pixels, landmarks, identity, motion), with their table and page.

A new metric is a column in `columns` and a function here; means over many films are in `benchmark`.
"""

from .columns import COLUMNS as COLUMNS
from .columns import Column as Column
from .report import report_page as report_page
from .scores import Scores as Scores
from .scores import table as table
from .stage import evaluate as evaluate
