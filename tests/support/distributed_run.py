"""Starts `distributed_steps`, without importing torch again in the decode processes, which import the main file anew."""

if __name__ == "__main__":
    from distributed_steps import entry

    entry()
