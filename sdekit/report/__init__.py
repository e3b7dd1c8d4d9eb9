"""A comparison as a person reads it: tables, pictures, one self-contained page, and the forms that papers want.

Each takes the ``Comparison`` that ``compare`` returned, finished or interrupted, or one that ``read`` made of the
records in a folder.
"""

from sdekit.report.export import csv, frame, latex
from sdekit.report.folder import read, rebuild, write
from sdekit.report.page import html
from sdekit.report.pictures import contact_sheet, picture, pictures_of
from sdekit.report.tables import show, show_solvers, tables, text
from sdekit.report.ways import Origin

__all__ = [
    "Origin", "contact_sheet", "csv", "frame", "html", "latex", "picture", "pictures_of", "read", "rebuild", "show",
    "show_solvers", "tables", "text", "write",
]  # fmt: skip
