"""`python -m custom_components.app`: choose a bundle and a scan in the browser, see and download the result."""

from ..errors import one_line_errors
from .server import main

if __name__ == "__main__":
    one_line_errors()
    main()
