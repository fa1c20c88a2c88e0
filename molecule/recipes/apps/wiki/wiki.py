from bottle import Bottle

VERSION = 1
app = Bottle()


@app.get("/")
def index():
    return {"version": VERSION}
