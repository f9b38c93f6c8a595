"""`pytest --nbmake` alone runs the unit tests and every chapter; chapters run at the smallest scale."""

import os

os.environ.setdefault("BOOK_SCALE", "smoke")
