import sys

print(f"hello from Python {sys.version_info.major} on {sys.platform}: {' '.join(sys.argv[1:]) or 'nobody named'}")
