echo "app says $1${DEBUG:+ in detail}"
