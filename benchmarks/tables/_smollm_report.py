def blocks(records):
    return []
