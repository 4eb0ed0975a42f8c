// A WebSocket that comes back by itself, with growing pauses, and says how old what it brought is.

const LONGEST_PAUSE = 8000;
const LOGGED_OUT = 4403;

export class Socket {
  // `url()` is asked with each attempt; `onMessage(object)` has shown it when it returns; `onChange()` is called
  // when `connected` or `loggedOut` changes.
  constructor(url, onMessage, onChange) {
    Object.assign(this, { url, onMessage, onChange });
    this.connected = this.loggedOut = false;
    this.failures = 0;
    this.open();
    addEventListener("online", () => this.hurry());
    document.addEventListener("visibilitychange", () => document.hidden || this.hurry());
  }

  open() {
    this.timer = undefined;
    const socket = (this.socket = new WebSocket(this.url()));
    socket.onmessage = (event) => {
      this.failures = 0;
      if (!this.connected) this.set({ connected: true });
      this.onMessage(JSON.parse(event.data));
      // The server makes the next message when this one is shown: a slow page gets fewer.
      this.send({ seen: true });
    };
    socket.onclose = (event) => {
      if (event.code === LOGGED_OUT) {
        this.set({ connected: false, loggedOut: true });
        return;
      }
      this.set({ connected: false });
      const pause = Math.min(LONGEST_PAUSE, 500 * 2 ** this.failures++);
      this.timer = setTimeout(() => this.open(), pause * (0.5 + Math.random() / 2));
    };
  }

  send(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  hurry() {
    if (this.timer === undefined) return;
    clearTimeout(this.timer);
    this.open();
  }

  set(what) {
    Object.assign(this, what);
    this.onChange();
  }
}
