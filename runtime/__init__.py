"""attnc.runtime: written modules -> ops that torch can call."""
if __name__ != "attnc.runtime":
    raise ImportError(f"import this package as 'attnc.runtime', not {__name__!r}")
