import os
import sqlite3

from flask import Flask, request

VERSION = 1
app = Flask(__name__)


def query(text, *values):
    with sqlite3.connect("data/shop.db") as database:
        return database.execute(text, values).fetchall()


@app.get("/")
def index():
    return {
        "version": VERSION,
        "currency": os.environ["CURRENCY"],
        "ticks": query("SELECT count(*) FROM tick")[0][0],
        "purchases": [article for (article,) in query("SELECT article FROM purchase")],
    }


@app.post("/purchases")
def buy():
    query("INSERT INTO purchase VALUES (?)", request.form["article"])
    return {}, 201
