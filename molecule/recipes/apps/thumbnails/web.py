from celery.result import AsyncResult
from flask import Flask, request
from tasks import queue, shrink

VERSION = 1
app = Flask(__name__)


@app.get("/")
def index():
    return {"version": VERSION}


@app.post("/thumbnails")
def create():
    task = shrink.delay(int(request.form["size"]), float(request.form.get("seconds", 0)))
    return {"id": task.id}, 202


@app.get("/thumbnails/<name>")
def show(name):
    task = AsyncResult(name, app=queue)
    return {"state": task.state, "result": task.result if task.successful() else None}
