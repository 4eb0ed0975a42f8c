"""Logins to the admin: how often a password may be wrong (settings), in the words of django-axes.

Who is wrong five times waits a quarter of an hour: a name at an address, or else anybody could lock the
operator out, and one colleague a whole office.
"""

from __future__ import annotations

import datetime
from typing import Final

AXES_FAILURE_LIMIT: Final = 5
AXES_COOLOFF_TIME: Final = datetime.timedelta(minutes=15)
AXES_LOCKOUT_PARAMETERS: Final = [["username", "ip_address"]]
AXES_RESET_ON_SUCCESS: Final = True
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT: Final = False  # the page says when it is over
AXES_LOCKOUT_CALLABLE: Final = "nodes.backoffice.logins.locked_out"
AXES_SENSITIVE_PARAMETERS: Final = ["username", "ip_address", "csrfmiddlewaretoken"]
"""Neither logged nor stored with an attempt."""
AXES_DISABLE_ACCESS_LOG: Final = True  # a row for each login and logout, for ever
AXES_VERBOSE: Final = False
AXES_ENABLE_ADMIN: Final = False
