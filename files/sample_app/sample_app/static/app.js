"use strict";

const show = (id, text) => { document.getElementById(id).textContent = text; };

function setState(state) {
  document.getElementById("clock").dataset.state = state;
  show("state", state);
}

function connect() {
  const socket = new WebSocket(new URL("/ticks", location.href.replace(/^http/, "ws")));
  socket.onopen = () => setState("connected");
  socket.onmessage = (event) => {
    const message = JSON.parse(event.data);
    show("tick", message.tick);
    show("time", new Date(message.time).toLocaleTimeString([], { hour12: false }));
    show("ticker", [message.slot, message.process].filter(Boolean).join("/") || message.pid);
  };
  // A restarting process closes its websockets; reconnect to its successor.
  socket.onclose = () => {
    setState("connecting");
    setTimeout(connect, 500 + 1000 * Math.random());
  };
}

connect();
