"""attnc.compiler: AST -> pattern IR -> block-mask IR -> kernel plan."""
if __name__ != "attnc.compiler":
    raise ImportError(f"import this package as 'attnc.compiler', not {__name__!r}")
