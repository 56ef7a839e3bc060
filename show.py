"""stub"""
def write(paths, out=None):
    return "x"
