"""Create the database of the books."""

import csv
import sqlite3
from pathlib import Path

with sqlite3.connect("books.db") as database, Path("books.csv").open() as file:
    database.execute("CREATE TABLE book (title TEXT, year INTEGER)")
    database.executemany("INSERT INTO book VALUES (?, ?)", csv.reader(file))
