from imgcls_infer.cli import main

main()
