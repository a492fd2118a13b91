"""What becomes of wrong, odd and equivalent arguments: a fuzz over the public API and the command line.

A *target* is one public function with arguments that are right. A case changes up to two of these and calls it.
Each change says what may follow: the `SAME` result as before (another type of the same value), a refusal (`WRONG`), or
either a refusal or a sound result (`FREE`). `outcomes` says what an outcome is worth, `values` how arguments are
changed, `library` and `commands` what is called, `cases` draws.
"""
