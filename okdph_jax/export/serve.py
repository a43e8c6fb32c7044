"""Serves a page on this machine that shows the classes of dropped pictures."""

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from threading import Lock
from typing import Any
from urllib.parse import unquote

from okdph_jax.export.model import Model

LARGEST = 32 * 2**20  # bytes of a picture


def server(model: Model, port: int = 8000, top: int = 5) -> ThreadingHTTPServer:
  """A server that only this machine can reach. port: 0 takes a free one (`server_address`).

  GET / returns the page, GET /model a description of the model. POST /predict takes the bytes
  of a picture and returns {"classes": [{"class", "probability"}, ...]} or {"error": message}.

  Raises:
    OSError: the port is taken.
  """
  page = resources.files("okdph_jax.export").joinpath("page.html").read_bytes()
  about = {"name": model.name, "image": model.image_shape, "classes": len(model.class_names)}
  one_at_a_time = Lock()  # TFLite's runtime cannot be called by several threads

  class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
      if self.path == "/":
        self.answer(page, kind="text/html; charset=utf-8")
      elif self.path == "/model":
        self.answer(about)
      else:
        self.answer({"error": f"there is no {self.path}"}, HTTPStatus.NOT_FOUND)

    def do_POST(self):
      length = int(self.headers.get("Content-Length") or 0)
      if self.path != "/predict":
        self.answer({"error": f"there is no {self.path}"}, HTTPStatus.NOT_FOUND)
      elif not 0 < length <= LARGEST:
        message = f"the picture has {length:,} bytes; it must have 1 to {LARGEST:,}"
        self.close_connection = True  # the body stays unread
        self.answer({"error": message}, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
      else:
        name = unquote(self.headers.get("X-Name") or "the picture")
        try:
          image = model.picture(name, self.rfile.read(length))
        except ValueError as error:
          self.answer({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
          return
        with one_at_a_time:
          (classes,) = model.predictions([image], top)
        self.answer({"classes": as_json(classes)})

    def answer(self, content, status=HTTPStatus.OK, kind="application/json"):
      body = content if isinstance(content, bytes) else json.dumps(content).encode()
      self.send_response(status)
      self.send_header("Content-Type", kind)
      self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      self.wfile.write(body)

    def log_message(self, format, *args):
      """Logs nothing: the page shows errors."""

  return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def as_json(classes: list[tuple[str, float]]) -> list[dict[str, Any]]:
  return [{"class": name, "probability": round(p, 6)} for name, p in classes]
