from imgcls_serve.cli import main

main()
