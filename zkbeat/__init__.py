"""zkbeat: run a command, `celery beat` above all, on exactly one of many nodes.

Importing the package costs nothing: the guard and `zkbeat health` are started often and import no more than they
need.
"""

__version__ = "0.1.0"
