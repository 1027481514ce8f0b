"""The routes, one file each; every module makes an APIRouter around the state that it is given."""
