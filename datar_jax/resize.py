"""placeholder"""


def resize_table(table, size_from, size_to, grid, scale=(1.0, 1.0)):
    return table


def resize_window_table(table, a, b):
    return table
