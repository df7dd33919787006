"""attnc.dsl: .attn text -> AST -> checked AST."""
if __name__ != "attnc.dsl":
    raise ImportError(f"import this package as 'attnc.dsl', not {__name__!r}")
