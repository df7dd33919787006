"""attnc.codegen: kernel plan -> one readable Python module."""
if __name__ != "attnc.codegen":
    raise ImportError(f"import this package as 'attnc.codegen', not {__name__!r}")
