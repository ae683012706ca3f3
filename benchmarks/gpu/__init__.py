"""What leaf does on a GPU, in eight minutes on a bare machine; see __main__.py."""
