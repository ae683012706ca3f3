"""An OpenAI-compatible server with scripted faults, a process of its own: `python judge_server.py` prints its port.

The last message scripts the answer: `says=TEXT;` is replied, `fault=NAME;` goes wrong first. GET tells what was asked.
"""

import json
import math
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lock = threading.Lock()
tries, log, busy = Counter(), {"requests": 0, "busiest": 0, "bodies": [], "keys": []}, [0]


class Handler(BaseHTTPRequestHandler):
    counted = False

    def do_GET(self):
        self._send(200, log)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][-1]["content"]
        found = re.search(r"fault=(\w+);", text)
        fault = found[1] if found else ""
        with lock:
            tries[json.dumps(body)] += 1
            number = tries[json.dumps(body)]
            busy[0] += 1
            self.counted = True
            log["requests"] += 1
            log["busiest"] = max(log["busiest"], busy[0])
            log["bodies"].append(body)
            log["keys"].append(self.headers.get("authorization"))
        try:
            self._answer(body, text, fault, number)
        finally:
            self._finish()

    def _finish(self):
        """Count a request as answered, once: before the answer is out, as a client may send its next one at once."""
        with lock:
            busy[0] -= self.counted
            self.counted = False

    def _answer(self, body, text, fault, number):
        if fault == "busy" and number <= 2:
            return self._send(429, {"error": "slow down"}, {"retry-after": "0.05"})
        if fault == "broken" and number == 1:
            return self._send(500, {"error": "oops"})
        if fault == "garbled" and number == 1:
            return self._send(200, "this is no JSON")
        if fault == "slow" and number == 1:
            time.sleep(1.5)
        if fault == "cut" and number == 1:
            return self.connection.close()
        if fault == "echo":
            # The key where cutting after 200 or 300 characters would leave half of it, and in the reply itself.
            key = self.headers.get("authorization", "")
            pad, status = (int(re.findall(rf"{name}=(\d+);", text)[0]) for name in ("pad", "status"))
            content = json.dumps({"error": "x" * pad + key}).replace("/", "\\/")
            return self._send(status, content)
        if fault == "told":
            message = {"role": "assistant", "content": f"Score: 70\n{self.headers.get('authorization')}"}
            return self._send(200, {"choices": [{"message": message}]})
        if fault in ("drips", "drips_headers", "endless"):
            return self._without_end(fault)
        if fault == "nested":
            return self._send(200, "[" * 200_000)
        if fault == "surrogate":
            return self._send(200, {"choices": [{"message": {"content": "\ud800"}}]})
        if fault == "nan":
            token = {"token": "4", "logprob": math.nan, "top_logprobs": []}
            choice = {"message": {"content": "4"}, "logprobs": {"content": [token]}}
            return self._send(200, {"choices": [choice]})
        if fault == "empty":
            return self._send(200, {"choices": []})
        if fault == "dead":
            return self._send(503, {"error": "down"})
        if fault == "refused":
            return self._send(401, {"error": f"bad key {self.headers.get('authorization')}"})
        time.sleep(0.02)
        said = re.findall(r"says=([^;]*);", text)
        said = said[body.get("seed", 0) % len(said)] if said else "hm"
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        if body.get("logprobs") and "nologprobs" not in text:
            # 60 % for what was said, 30 % for 1 (after a space), 10 % for a word.
            chances = {said: 0.6, " 1": 0.3, "well": 0.1}
            top = [{"token": token, "logprob": math.log(chance)} for token, chance in chances.items()]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        return self._send(200, {"object": "chat.completion", "choices": [choice]})

    def _without_end(self, fault):
        """Send a byte every 0.05 s, or as many as there is room for, until the client gives up."""
        self._finish()
        self.wfile.write(b"HTTP/1.1 200 OK\r\nx-long: " if fault == "drips_headers" else b"HTTP/1.1 200 OK\r\n\r\n")
        chunk, pause = (b" " * 2**16, 0) if fault == "endless" else (b"x", 0.05)
        self.close_connection = True
        try:
            while True:
                self.wfile.write(chunk)
                time.sleep(pause)
        except OSError:
            pass  # the client gave up

    def _send(self, status, content, headers=None):
        self._finish()
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": len(data), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            self.close_connection = True  # the client gave up

    def log_message(self, format, *args):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()
