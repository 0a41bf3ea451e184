"""Programs that the tests start meet the environment that users have, not what is set in this shell.

With PYTHONUNBUFFERED Python's streams have neither a buffer nor a lock, so that neither can be found to be in the way.
"""

import os

os.environ.pop("PYTHONUNBUFFERED", None)
