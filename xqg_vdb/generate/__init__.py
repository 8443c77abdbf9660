"""Query generation: questions in other languages for every passage, from whatever model there is.

Nothing heavy is imported here; `xqg_vdb.generate.run.generate_file` is what the command line calls.
"""

from xqg_vdb.face import make_callable

make_callable(__name__, home="xqg_vdb.generate.local")
