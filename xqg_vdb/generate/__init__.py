"""Query generation: questions in other languages for every passage, from whatever model there is.

Nothing heavy is imported here; `xqg_vdb.generate.run.generate_file` is what the command line calls.
"""
