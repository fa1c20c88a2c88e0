import { createServer } from "node:http";
import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { WebSocketServer } from "ws";

const VERSION = 1;
const quotes = "data/quotes.jsonl";

const server = createServer((request, response) => {
  const lines = existsSync(quotes) ? readFileSync(quotes, "utf8").trim().split("\n") : [];
  response.setHeader("Content-Type", "application/json");
  response.end(JSON.stringify({ version: VERSION, node: process.version, quotes: lines.map((line) => JSON.parse(line)) }));
});

const sockets = new WebSocketServer({ server, path: "/live" });
sockets.on("connection", (socket) => {
  socket.on("message", (data) => {
    const quote = JSON.parse(data);
    appendFileSync(quotes, `${JSON.stringify(quote)}\n`);
    for (const client of sockets.clients) client.send(JSON.stringify(quote));
  });
});

// Finish what is in flight, and ask websocket clients to reconnect.
process.on("SIGTERM", () => {
  server.close();
  server.closeIdleConnections();
  for (const client of sockets.clients) client.close(1012);
});

server.listen(process.argv[2]);
