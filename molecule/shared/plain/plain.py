"""A minimal Tornado script whose only option is its port."""

import asyncio

import tornado.options
import tornado.web

tornado.options.define("port", default=8888)


class Main(tornado.web.RequestHandler):
    def get(self) -> None:
        self.write("plain v1\n")


async def main() -> None:
    tornado.options.parse_command_line()
    tornado.web.Application([("/", Main)]).listen(tornado.options.options.port, "127.0.0.1")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
