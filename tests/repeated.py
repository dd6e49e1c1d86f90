"""What goes on beside a test."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(action: Callable[[], object], seconds: float) -> Iterator[None]:
    """An action again and again, with a pause between, in a thread that ends with the block."""
    over = threading.Event()

    def act() -> None:
        while not over.wait(seconds):
            action()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
