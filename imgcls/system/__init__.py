"""What any program needs: files, devices, progress, interrupts."""
