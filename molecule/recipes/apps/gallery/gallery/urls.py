from django.contrib import admin
from django.http import JsonResponse
from django.urls import path
from photos.models import Photo

VERSION = 1


def index(_request):
    return JsonResponse({"version": VERSION, "photos": [[photo.title, photo.file.url] for photo in Photo.objects.all()]})


urlpatterns = [path("", index), path("admin/", admin.site.urls)]
