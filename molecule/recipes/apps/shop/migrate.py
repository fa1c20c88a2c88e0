import sqlite3

with sqlite3.connect("data/shop.db") as database:
    database.execute("CREATE TABLE IF NOT EXISTS tick (moment)")
    database.execute("CREATE TABLE IF NOT EXISTS purchase (article)")
