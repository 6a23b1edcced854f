"""Start `distributed_steps`; decode processes import the main file again, and this one does not import torch."""

if __name__ == "__main__":
    from distributed_steps import entry

    entry()
