"""LVM disks without LVM: partition tables, labels, the text metadata, and the volumes that they make; read only."""
