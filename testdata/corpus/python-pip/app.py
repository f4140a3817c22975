import idna

print(idna.encode("bücher.example").decode())
