"""The command line, one file per command. Read `main.py` (dispatch and exit codes), `train.py` and `parse.py`.

A command's module imports nothing heavy at its top, so that `dgpo --help` and a mistyped command answer at once. It has

    USAGE  what the command line looks like -> what it does, the command's lines in `dgpo --help`
    run    the words after the command's name -> the exit code
"""
