"""Prompts of the docstring task: the shape of the function, names of methods and arguments, and words that describe them."""

FRAME = '''def {_method}(self, {rand1_def}, {rand2_def}, {a_def}, {b_def}, {c_def}, {rand3_def}):
    """{_what}

    :param {a_doc}: {_about_a}
    :param {b_doc}: {_about_b}
    :param'''

METHODS: tuple[str, ...] = (
    *("run", "load", "save", "open", "close", "start", "stop", "send", "read", "write", "merge", "split", "sort", "find"),
    *("build", "update", "check", "move", "copy", "draw", "print", "count", "search", "train", "test", "connect", "apply"),
)

ARGUMENTS: tuple[str, ...] = tuple(
    """
    size files last first name value key path port host user group index count limit mode type color width height depth
    level speed time date year month day hour start end left right top bottom old new base target source input output image
    text line word page table field record order state status title label code data list queue tree node edge weight
    scale shift range step rate error result model layer price total region city country street number letter message
    header body sound frame scene shape point center angle radius volume mass force energy power signal sample
    """.split()  # noqa: SIM905 - a list literal would be many quoted lines
)

WORDS: tuple[str, ...] = tuple(
    """
    river winter garden market family music summer morning story island forest castle kitchen window silver horse engine
    bridge doctor teacher planet ocean paper glass metal stone wood cloud storm fire water flower fruit bread sugar coffee
    village church school museum hotel railway soldier captain farmer painter singer writer animal insect desert valley
    mountain lake coast tower wall roof floor door chair desk lamp clock camera phone radio
    """.split()  # noqa: SIM905 - a list literal would be many quoted lines
)
