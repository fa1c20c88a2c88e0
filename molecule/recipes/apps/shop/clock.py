import sqlite3
import time

while True:
    with sqlite3.connect("data/shop.db") as database:
        database.execute("INSERT INTO tick VALUES (?)", [time.time()])
    database.close()
    time.sleep(0.5)
