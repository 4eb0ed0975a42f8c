"""What the launcher tells a person to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gputorrent.stack import Place


def how_to_go_on(url: str, made: Mapping[str, Any], model: str) -> str:
    """The end of the demo: how to call it, who may log in. Holds secrets: for the terminal alone."""
    password = made.get("admin_password")
    login = f"{made['admin_user']} / {password}" if password else f"{made['admin_user']} (as you know it)"
    return f"""\
Ask it yourself:

  curl {url}/v1/chat/completions \\
    -H "Authorization: Bearer {made["api_key"]}" \\
    -H "Content-Type: application/json" \\
    -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello!"}}], "stream": true}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="{made["api_key"]}")
  answer = client.chat.completions.create(
      model="{model}", messages=[{{"role": "user", "content": "Hello!"}}])
  print(answer.choices[0].message.content)

Admin      {url}/admin/   {login}
API key    {made["api_key"]}   (shown only now)

Ctrl-C stops everything."""


def how_to_administer(place: Place, mode: str, *, embedded_redis: bool) -> str:
    """The start of a server: where it is, and how to let people and hosts in."""
    lines = [
        f"coordinator ({mode}) on {place.host} port {place.port}, data in {place.data}",
        "",
        "  .venv/bin/python manage.py createsuperuser         who may use the admin",
        "  .venv/bin/python manage.py apikey create --name x  a key for callers",
        "  .venv/bin/python manage.py enrolment_token         a token for a GPU host",
    ]
    if embedded_redis:
        lines += [
            "",
            "Redis is the embedded one, on loopback unless GPUTORRENT_REDIS_BIND says otherwise: agents on",
            "other hosts need one that they can reach (REDIS_URL, best with rediss://).",
        ]
    return "\n".join(lines)
