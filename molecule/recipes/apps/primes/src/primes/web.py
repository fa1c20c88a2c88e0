import tornado.web

from primes._sieve import count

VERSION = 1


class Primes(tornado.web.RequestHandler):
    def get(self, limit: str) -> None:
        self.write({"version": VERSION, "primes": count(min(int(limit), 10**7))})


def make_app() -> tornado.web.Application:
    return tornado.web.Application([("/(0|[1-9][0-9]{0,8})", Primes)])
