"""Python runs this file when it starts with the tests' PYTHONPATH: no connection leaves this machine."""

import sys

OWN = ("127.", "::1", "localhost")  # where addresses of this machine begin


def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):  # arguments: socket and address; host and port
        address = arguments[1] if event == "socket.connect" else arguments
        if isinstance(address, tuple) and address[0] and not str(address[0]).startswith(OWN):  # other kinds are local
            raise OSError(f"the tests have no network, and something asked for {address[0]}")


sys.addaudithook(refuse)
