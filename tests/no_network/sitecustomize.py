"""Python runs this file when it starts with the tests' PYTHONPATH: nothing leaves this machine."""

import sys

OWN = ("127.", "::1", "localhost")  # where addresses of this machine begin


def refuse(event, arguments):
    if event == "socket.connect":
        address = arguments[1]  # behind the socket
    elif event == "socket.getaddrinfo":
        address = arguments     # host, port, ...
    else:
        return
    is_internet = isinstance(address, tuple) and address[0]  # other kinds of sockets are local
    if is_internet and not str(address[0]).startswith(OWN):
        raise OSError(f"the tests have no network, and something asked for {address[0]}")


sys.addaudithook(refuse)
