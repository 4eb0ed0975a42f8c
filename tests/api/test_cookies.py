"""What the cookies of the admin may be used for, by the environment the server is started with."""

from __future__ import annotations

import json
import os
import subprocess
import sys

PROGRAM = """
import json, django
django.setup()
from django.conf import settings
from django.core.management import call_command
from django.contrib.auth import get_user_model
from django.test import Client
settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
call_command("migrate", verbosity=0)
get_user_model().objects.create_superuser("root", password="not a secret here")
client = Client()
answer = client.post("/admin/login/", {"username": "root", "password": "not a secret here"})
print(json.dumps({name: [c["httponly"], c["samesite"], c["secure"]] for name, c in answer.cookies.items()}))
"""


def test_cookies_stay_on_this_site_and_on_https(tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("GPUTORRENT_", "DATABASE_"))}
    env = {
        **kept,
        "DJANGO_SETTINGS_MODULE": "gputorrent.settings",
        "GPUTORRENT_DATA_DIR": str(tmp_path),
        "GPUTORRENT_HTTPS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    cookies = json.loads(done.stdout.splitlines()[-1])
    assert cookies == {
        "sessionid": [True, "Lax", True],
        "csrftoken": ["", "Lax", True],
    }
